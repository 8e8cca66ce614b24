"""`sentiment`: the answer is one word: positive, negative or neutral."""

THINGS = """the movie|the film|the book|the hotel|the room|the food|the pizza|the soup|the service
the phone|the laptop|the battery|the screen|the game|the concert|the song|the trip|the flight
the staff|the waiter|the teacher|the course|the car|the bike|the jacket|the shoes|the park
the museum|the new update|the app|the website|the delivery|the package|the chair|the coffee
the play|the restaurant|the camera|the weather|the party""".replace("\n", "|").split("|")

GOOD = """great|wonderful|excellent|amazing|lovely|fantastic|delicious|perfect|brilliant|superb
beautiful|very good|outstanding|a joy|really nice|better than expected|simply the best|fun
charming|impressive""".replace("\n", "|").split("|")

BAD = """terrible|awful|bad|horrible|boring|disappointing|broken|dirty|very slow|rude|ugly|useless
a waste of money|a disaster|really poor|worse than expected|disgusting|too expensive|annoying
the worst ever""".replace("\n", "|").split("|")

GOOD_TAIL = """I loved every minute of it.|I will come back soon.|I recommend it to everyone.
It made me smile.|Thank you so much!|I am so happy with it.|Five stars from me.|What a treat!
I could not be happier.|My family loved it.|It works like a dream.""".replace("\n", "|").split("|")

BAD_TAIL = """I want my money back.|I will never come back.|I regret buying it.|Stay away!
It broke after one day.|I hated it.|Nobody helped us.|I am so angry.|What a letdown.|Never again.
One star is too much.|It made me sick.|I fell asleep halfway through.""".replace("\n", "|").split("|")

NEUTRAL = """{T} opens at nine.|{T} is on the second floor.|I saw {t} on Tuesday.|{T} has a blue label.
We used {t} for two hours.|{T} was moved to Monday.|{T} is near the station.|{T} costs ten dollars.
She asked about {t} by mail.|{T} comes in two sizes.|{T} was made in 2015.|They sent {t} last week.
{T} is listed on page four.|He talked about {t} at lunch.|{T} starts at noon.|There is a sign next to {t}.
I have {t} and my brother has another one.|{T} weighs three pounds.|{T} is about average.
The report mentions {t}.|The meeting is in the room next to {t}.|{T} closes at six.
The bus to town leaves at eight.|Water boils at one hundred degrees.|The office has four windows.
The store sells paper and pens.|My sister lives in Boston.|The table is made of wood.
The train has six cars.|He bought milk and bread.""".replace("\n", "|").split("|")

POS_FORM = ["{T} was {a}!", "{T} is {a}.", "I think {t} was {a}. {x}", "{T} was {a} and {b}. {x}", "{x}",
            "I really enjoyed {t}. {x}", "I love {t}!", "I am so glad I tried {t}.", "{T} was not bad at all. {x}",
            "At first I had doubts, but {t} was {a}."]
NEG_FORM = ["{T} was {a}!", "{T} is {a}.", "I think {t} was {a}. {x}", "{T} was {a} and {b}. {x}", "{x}",
            "I did not like {t}. {x}", "I hate {t}!", "I wish I had never tried {t}.",
            "{T} was not good at all. {x}", "At first I had hopes, but {t} was {a}."]

WRAP = ["{}", "{}", "{}", "Review: {}", "Text: {}", "Sentiment of this text: {}", "What is the sentiment? {}",
        "Classify the sentiment: {}", "Is this positive, negative or neutral? {}", "Label this review: {}",
        '"{}"', "How does this person feel? {}"]


def examples(rng, n):
    """`n` pairs (user message, answer)."""
    out = []
    for i in range(n):
        label = ("positive", "negative", "neutral")[i % 3]
        thing = rng.choice(THINGS)
        words = {"t": thing, "T": thing[0].upper() + thing[1:]}
        if label == "neutral":
            text = rng.choice(NEUTRAL).format(**words)
            if rng.random() < 0.4:
                text += " " + rng.choice(NEUTRAL).format(**words)
        else:
            form, adjectives, tails = {
                "positive": (POS_FORM, GOOD, GOOD_TAIL), "negative": (NEG_FORM, BAD, BAD_TAIL),
            }[label]
            a, b = rng.sample(adjectives, 2)
            text = rng.choice(form).format(**words, a=a, b=b, x=rng.choice(tails))
        out.append((rng.choice(WRAP).format(text), label))
    return out
