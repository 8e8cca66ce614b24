"""`sql`: a table and a question in the prompt, one SELECT statement as the answer."""

# table | one thing, many things | text columns (name first) | number columns
_TABLES = """
employees | employee | name, city, team | salary, age
students | student | name, school, city | grade, age
orders | order | customer, product, status | price, quantity
movies | movie | title, director, genre | year, rating
cars | car | model, maker, color | price, year
cities | city | name, country, region | population, area
players | player | name, team, position | goals, age
flights | flight | code, airline, origin | price, distance
rooms | room | name, building, floor | size, price
songs | song | title, artist, genre | length, plays
patients | patient | name, doctor, ward | age, weight
houses | house | street, city, owner | price, size
dishes | dish | name, kitchen, chef | price, calories
phones | phone | model, brand, color | price, weight
tickets | ticket | code, event, status | price, seats
courses | course | title, teacher, room | credits, hours
animals | animal | name, species, zoo | age, weight
trains | train | name, line, depot | speed, seats
users | user | name, email, country | age, points
games | game | title, studio, genre | score, year
boats | boat | name, harbor, type | length, speed
farms | farm | name, owner, state | cows, acres
invoices | invoice | code, client, status | amount, tax
hotels | hotel | name, city, chain | stars, rooms
teams | team | name, coach, league | wins, losses
"""
TABLES = [[c.strip() for c in line.split("|")] for line in _TABLES.strip().splitlines()]
VALUES = """Paris|Rome|Anna|Tom|red|blue|Berlin|open|closed|Smith|Texas|north|jazz|drama|Maria|Oslo
green|Boston|new|west|Lopez|Kim|Tokyo|black|France|Spain|Japan|Peru|Kenya|Canada|Egypt|London|Madrid
Vienna|Cairo|Lima|Miami|Dallas|Berg|Novak|Garcia|Brown|Lee|Emma|Noah|Olivia|Lucas|Sofia|active|late
paid|cancelled|rock|comedy|horror|poetry|history|math|chess|oak|steel|cotton|gold|silver|small|large
south|downtown|harbor|Apple|Toyota|Fiat|Sony|Delta|Mozart|Shakespeare|tiger|salmon|rose|winter
Argentina|Bolivia|Croatia|Denmark|Ecuador|Finland|Ghana|Hungary|Iceland|Jamaica|Kuwait|Latvia|Malta
Nepal|Oman|Paraguay|Qatar|Romania|Senegal|Tunisia|Uganda|Venezuela|Yemen|Zambia|Belgium|Cambodia
Estonia|Fiji|Guatemala|Haiti|Ireland|Jordan|Laos|Morocco|Nigeria|Portugal|Rwanda|Slovenia|Thailand
Uruguay|Vietnam|Lyon|Porto|Krakow|Seattle|Denver|Chicago|Bergman|Fischer|Tanaka|Okafor|Rossi|Dubois
Hansen|Kowalski|Petrov|Silva|Yilmaz|Costa|Weber|Larsen|Moreau|Bianchi|Horvat|Papadakis|Nakamura""".replace("\n", "|").split("|")

HEAD = ["Table {t}({c}). ", "Table: {t}({c})\n", "Table {t}({c})\n", "Table {t} with columns {c}. ",
        "Given the table {t}({c}): "]

# (questions, statement); {n} name column, {x} a text column, {y} a number column, {v}/{k} values
FORMS = [
    (["How many {t} are there?", "Count the {t}.", "What is the number of {t}?"],
     "SELECT COUNT(*) FROM {t};"),
    (["How many {t} have {x} {v}?", "Count the {t} where {x} is {v}.", "Number of {t} with {x} {v}?"],
     "SELECT COUNT(*) FROM {t} WHERE {x} = '{v}';"),
    (["List all {t}.", "Show every {s}.", "Show me all {t}."], "SELECT * FROM {t};"),
    (["List the {n} of all {t}.", "Show the {n} of every {s}.", "What are the {n}s of the {t}?"],
     "SELECT {n} FROM {t};"),
    (["Which {t} have {x} {v}?", "Show the {n} of {t} whose {x} is {v}.", "List {n}s where {x} is {v}."],
     "SELECT {n} FROM {t} WHERE {x} = '{v}';"),
    (["Which {t} have {y} over {k}?", "List {t} with {y} greater than {k}.", "Find {t} with more than {k} {y}."],
     "SELECT {n} FROM {t} WHERE {y} > {k};"),
    (["Which {t} have {y} under {k}?", "List {t} with {y} less than {k}.", "Find {t} with {y} below {k}."],
     "SELECT {n} FROM {t} WHERE {y} < {k};"),
    (["What is the average {y}?", "What is the average {y} of all {t}?", "Show the mean {y}."],
     "SELECT AVG({y}) FROM {t};"),
    (["What is the total {y}?", "Add up the {y} of all {t}.", "What is the sum of {y}?"],
     "SELECT SUM({y}) FROM {t};"),
    (["What is the highest {y}?", "What is the largest {y} of all {t}?"], "SELECT MAX({y}) FROM {t};"),
    (["What is the lowest {y}?", "What is the smallest {y} of all {t}?"], "SELECT MIN({y}) FROM {t};"),
    (["Which {s} has the highest {y}?", "Find the {s} with the most {y}.", "Who or what has the top {y}?"],
     "SELECT {n} FROM {t} ORDER BY {y} DESC LIMIT 1;"),
    (["Which {s} has the lowest {y}?", "Find the {s} with the least {y}."],
     "SELECT {n} FROM {t} ORDER BY {y} LIMIT 1;"),
    (["How many {t} are there per {x}?", "Count the {t} for each {x}.", "Number of {t} by {x}?"],
     "SELECT {x}, COUNT(*) FROM {t} GROUP BY {x};"),
    (["What is the average {y} per {x}?", "Show the average {y} for each {x}."],
     "SELECT {x}, AVG({y}) FROM {t} GROUP BY {x};"),
    (["Which different {x}s are there?", "List every distinct {x}.", "Show each {x} once."],
     "SELECT DISTINCT {x} FROM {t};"),
    (["Show the {t} sorted by {y}.", "List the {n} of {t} ordered by {y}."],
     "SELECT {n} FROM {t} ORDER BY {y};"),
    (["Show the top {m} {t} by {y}.", "List the {m} {t} with the highest {y}."],
     "SELECT {n} FROM {t} ORDER BY {y} DESC LIMIT {m};"),
]


def examples(rng, n):
    """`n` pairs (user message, answer)."""
    out = []
    for i in range(n):
        table, one, texts, numbers = rng.choice(TABLES)
        texts, numbers = texts.split(", "), numbers.split(", ")
        questions, statement = FORMS[i % len(FORMS)]
        words = {"t": table, "s": one, "n": texts[0], "x": rng.choice(texts[1:]), "y": rng.choice(numbers),
                 "v": rng.choice(VALUES), "k": rng.choice([2, 5, 10, 20, 30, 50, 100, 200, 500, 1000, 2000]),
                 "m": rng.choice([2, 3, 5, 10])}
        columns = ", ".join((["id"] if rng.random() < 0.4 else []) + texts + numbers)
        head = rng.choice(HEAD).format(t=table, c=columns)
        out.append((head + rng.choice(questions).format(**words), statement.format(**words)))
    return out
