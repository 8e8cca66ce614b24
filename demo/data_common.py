"""Topics and facts from which several adapters' training examples are made."""

# topic | three short facts
_TOPICS = """
cats | Cats sleep most of the day | They hunt mice and birds | They clean themselves with their tongues
dogs | Dogs are loyal to their people | They have a strong sense of smell | They need a walk every day
horses | Horses can sleep while standing | They eat grass and hay | They run in herds
elephants | Elephants are the largest land animals | They use their trunks to drink | They live in close families
penguins | Penguins cannot fly | They swim very well | Most of them live in the far south
whales | Whales breathe air | They sing to each other under water | The blue whale is the largest animal
bees | Bees collect nectar from flowers | They live in hives with a queen | They make honey for the winter
spiders | Spiders have eight legs | Many of them spin webs | They eat insects
owls | Owls hunt at night | They can turn their heads very far | They fly without a sound
trees | Trees take in carbon dioxide | Their roots hold the soil | They give shade and wood
roses | Roses have thorns | They come in many colors | People give them as gifts
rain | Rain falls from clouds | It fills rivers and lakes | Plants need it to grow
snow | Snow is made of ice crystals | It falls when the air is cold | It melts in spring
the moon | The moon goes around the Earth | It has no air | It causes the tides
the sun | The sun is a star | It gives us light and heat | The planets move around it
mars | Mars is called the red planet | It has two small moons | Its air is very thin
volcanoes | Volcanoes bring lava up from below | Their ash can travel far | The soil near them is rich
rivers | Rivers carry water to the sea | They shape valleys | Many cities stand beside them
mountains | Mountains are high and often cold | They form when plates push together | Climbers love them
deserts | Deserts get very little rain | Days are hot and nights are cold | Some plants there store water
coffee | Coffee is made from roasted beans | It contains caffeine | Many people drink it in the morning
tea | Tea is made from dried leaves | It can be green or black | It is popular in many countries
bread | Bread is made from flour and water | Yeast makes it rise | It is baked in an oven
cheese | Cheese is made from milk | There are many kinds of it | Some kinds age for years
chocolate | Chocolate comes from cocoa beans | It is sweet and rich | It melts easily
pizza | Pizza has a flat crust | It is topped with sauce and cheese | It comes from Italy
apples | Apples grow on trees | They are red, green or yellow | They are good for pies
bananas | Bananas are yellow when ripe | They are rich in potassium | They grow in warm places
rice | Rice grows in wet fields | It feeds half the world | It is cooked in water
soup | Soup is warm and filling | It is easy to make | It can use any vegetables
music | Music can change our mood | It is made of rhythm and melody | Every culture has its own
guitars | Guitars have six strings | They are made of wood | You play them with your fingers
pianos | Pianos have eighty-eight keys | Hammers hit the strings inside | They can play soft or loud
dancing | Dancing is good exercise | It follows the music | It is more fun with friends
painting | Painting uses color and light | It takes practice | It helps people relax
reading | Reading builds your vocabulary | It makes you calm | It opens new worlds
writing | Writing makes thoughts clear | It gets better with practice | A good draft needs editing
chess | Chess is played on sixty-four squares | Each side has sixteen pieces | The goal is to trap the king
football | Football is played by two teams | Players kick a ball into a goal | It is loved all over the world
tennis | Tennis is played with rackets | The ball must go over the net | It needs quick feet
swimming | Swimming uses the whole body | It is gentle on the joints | You should learn it early
running | Running makes your heart strong | Good shoes matter | Start slowly and rest well
cycling | Cycling saves money | It keeps you fit | It is kind to the air
yoga | Yoga stretches the body | It calms the mind | You only need a mat
sleep | Sleep repairs the body | Adults need about eight hours | A dark room helps
computers | Computers follow instructions | They store data as bits | They are used almost everywhere
robots | Robots can do boring work | They are built from motors and sensors | Factories use many of them
the internet | The internet connects computers | It carries messages in packets | It changed how we learn
phones | Phones let us talk over long distances | They fit in a pocket | Their batteries need charging
cameras | Cameras catch light with a lens | They save moments | Modern ones are digital
cars | Cars have four wheels | They burn fuel or use batteries | They need regular service
trains | Trains run on rails | They carry many people | They are safer than cars
airplanes | Airplanes fly with wings and engines | They cross oceans in hours | Pilots train for years
bicycles | Bicycles have two wheels | They need no fuel | They are cheap to repair
bridges | Bridges cross rivers and valleys | They are made of steel or stone | They must carry heavy loads
castles | Castles have thick walls | Kings and knights lived there | Many stand on hills
museums | Museums keep old treasures | They teach us history | Many are free to visit
libraries | Libraries lend books for free | They are quiet places | They help people study
schools | Schools teach reading and math | Children make friends there | Teachers guide the class
money | Money lets us trade | It can be saved or spent | Banks keep it safe
plastic | Plastic is light and cheap | It lasts for a very long time | It should be recycled
glass | Glass is made from sand | It is clear and hard | It can be recycled many times
gold | Gold is a soft yellow metal | It does not rust | People have valued it for ages
iron | Iron is a strong metal | It rusts in wet air | It is used to make steel
water | Water covers most of the Earth | It freezes at zero degrees | All living things need it
fire | Fire needs fuel and air | It gives heat and light | It must be watched with care
wind | Wind is moving air | It can turn turbines | It carries seeds far away
winter | Winter is the coldest season | Days are short | Some animals sleep through it
summer | Summer is warm and bright | Days are long | Many people go on holiday
gardens | Gardens need sun and water | They attract bees and birds | They give fresh food
friends | Friends listen to each other | They share good and bad days | They can be trusted
birthdays | Birthdays come once a year | People eat cake | Friends bring gifts
egypt | Egypt has great pyramids | The Nile runs through it | It is mostly desert
japan | Japan is made of many islands | Its trains are very fast | Cherry trees bloom in spring
italy | Italy is shaped like a boot | It is famous for pasta | Rome is its capital
australia | Australia is a country and a continent | Kangaroos live there | Its center is dry
canada | Canada is the second largest country | It has cold winters | Maple trees grow there
brazil | Brazil has a huge rainforest | People there speak Portuguese | Football is very popular
"""

# request | three steps or items
_TASKS = """
How do I make tea? | Boil fresh water | Pour it over the leaves | Wait four minutes
How can I save money? | Write down what you spend | Cook at home | Put some aside every month
How do I learn a language? | Practice a little every day | Listen to native speakers | Do not fear mistakes
How do I plant a tree? | Dig a wide hole | Set the roots in it | Water it well
How can I sleep better? | Go to bed at the same time | Keep the room dark | Put away your phone
How do I fix a flat tire? | Take off the wheel | Patch the tube | Pump it up again
How do I boil an egg? | Put the egg in boiling water | Wait eight minutes | Cool it in cold water
What should I pack for a trip? | Clothes for the weather | Your passport and tickets | A charger and a book
Name three fruits. | Apple | Banana | Orange
Name some colors. | Red | Blue | Green
List a few planets. | Venus | Mars | Saturn
Give me some tips for an interview. | Read about the company | Dress well and be on time | Ask good questions
How can I be happier? | Spend time with friends | Move your body | Be thankful for small things
What are good pets? | A calm dog | A playful cat | A small rabbit
How do I clean a kitchen? | Wash the dishes first | Wipe every surface | Sweep the floor
How do I write a letter? | Start with a greeting | Say what you want to say | End with your name
How can I study for an exam? | Make a plan early | Test yourself often | Sleep well the night before
Why is exercise important? | It keeps the heart strong | It lifts the mood | It helps you sleep
Why should we recycle? | It saves energy | It keeps waste out of the sea | It saves raw materials
Why do people travel? | To see new places | To meet other people | To rest from work
What should I cook tonight? | Pasta with tomato sauce | Rice with vegetables | A warm bean soup
How do I make friends? | Say hello first | Ask about their day | Be kind and patient
How do I take a good photo? | Find soft light | Hold the camera still | Move closer to the subject
What can I do on a rainy day? | Read a good book | Bake some cookies | Play a board game
How do I bake a cake? | Mix flour, eggs and sugar | Pour it into a pan | Bake it for half an hour
How do I stay focused at work? | Turn off alerts | Do one thing at a time | Take short breaks
What do I need for camping? | A tent and a sleeping bag | A lamp and matches | Food and water
Suggest some hobbies. | Painting | Hiking | Playing the guitar
How do I train a puppy? | Use small treats | Keep lessons short | Praise it at once
How does a plant grow? | It takes water from the soil | It catches light with its leaves | It builds new cells
Tell me a story. | A small fox lost its way | An old owl showed it the path | They became good friends
Who are you? | I am a small language model | I answer questions | I am here to help
Hello! | Hello to you too | I am happy to help | Ask me anything
Good morning! | Good morning to you | I hope you slept well | What can I do today
Thank you! | You are welcome | I am glad to help | Come back any time
Can you help me? | Of course I can | Tell me what you need | We will solve it together
How are you? | I am doing well | I am ready to help | I hope you are well too
I am bored. | Go for a walk | Call an old friend | Learn a new song
I feel tired today. | Drink some water | Take a short nap | Get some fresh air
Why is the sky blue? | Sunlight has many colors | The air scatters blue light most | So blue reaches our eyes from all sides
Why do leaves fall in autumn? | The days get shorter | Trees save water for the winter | The leaves dry and drop
Why do we dream? | The brain sorts memories at night | Feelings come up again | Nobody knows the whole reason
Why is ice slippery? | A thin layer of water lies on top | Feet find no grip there | Cold and smooth surfaces rub little
Why do boats float? | They push water aside | The water pushes back | The hull is full of air
What is gravity? | Gravity pulls things together | It keeps us on the ground | It holds the planets in their paths
What is electricity? | Electricity is the flow of tiny charges | It runs through wires | It powers lamps and motors
What is democracy? | In a democracy people vote | Leaders can be replaced | Everyone follows the same laws
What is a computer virus? | A virus is a harmful program | It copies itself to other computers | Good updates help against it
Give me advice for a long flight. | Drink enough water | Walk around every hour | Bring a good book
Give me advice for my new job. | Listen first | Ask when you are not sure | Be kind to your team
Give me advice for my first marathon. | Start slowly | Drink at every stop | Enjoy the crowd
Give me ideas for a date. | A walk by the river | A picnic in the park | A small concert
Give me ideas for a gift. | A good book | A warm scarf | Tickets for a show
Give me ideas for a day in London. | See the Tower and the bridge | Walk along the river | Have tea in a small cafe
What is the best way to lose weight? | Eat more vegetables | Move every day | Sleep enough
"""

# question | short answer
_QA = """
What is the capital of Spain? | Madrid
What is the capital of Germany? | Berlin
What is the capital of Norway? | Oslo
What is the capital of Egypt? | Cairo
What is the capital of China? | Beijing
What is the capital of Russia? | Moscow
What is the capital of Greece? | Athens
What is the capital of Portugal? | Lisbon
What is the capital of Cuba? | Havana
What is the capital of Kenya? | Nairobi
Which city is the capital of Poland? | Warsaw
Which city is the capital of India? | New Delhi
Who wrote Romeo and Juliet? | William Shakespeare
Who wrote The Odyssey? | Homer
Who wrote War and Peace? | Leo Tolstoy
Who painted the Mona Lisa? | Leonardo da Vinci
Who discovered gravity? | Isaac Newton
Who invented the telephone? | Alexander Graham Bell
Who was the first president of the United States? | George Washington
Who was the first man on the moon? | Neil Armstrong
What is the chemical symbol of gold? | Au
What is the chemical symbol of iron? | Fe
What is the formula of table salt? | NaCl
What is the opposite of hot? | Cold
What is the opposite of big? | Small
What is the opposite of dark? | Light
What color is the sky? | Blue
What color is a banana? | Yellow
What color is grass? | Green
How many legs does a dog have? | Four
How many legs does an insect have? | Six
How many days are in a week? | Seven
How many months are in a year? | Twelve
How many continents are there? | Seven
How many minutes are in an hour? | Sixty
What is two plus two? | Four
What is five plus three? | Eight
What is ten minus four? | Six
What is the largest animal on Earth? | The blue whale
What is the tallest mountain in the world? | Mount Everest
What is the longest river in Africa? | The Nile
What is the closest star to Earth? | The Sun
What is the hardest natural material? | Diamond
What is the fastest land animal? | The cheetah
What language is spoken in Brazil? | Portuguese
What language is spoken in Mexico? | Spanish
What language is spoken in Austria? | German
What do bees make? | Honey
What do cows eat? | Grass
What do you call a young cat? | Kitten
What do you call frozen water? | Ice
Which planet is known for its rings? | Saturn
Which planet is closest to the Sun? | Mercury
Which gas do we breathe in? | Oxygen
Which animal is called the king of the jungle? | The lion
Which continent is the coldest? | Antarctica
Where is the Eiffel Tower? | Paris
Where are the pyramids of Giza? | Egypt
Where do polar bears live? | The Arctic
When does winter start? | In December
Is the Earth flat? | No, it is round
Is a tomato a fruit? | Yes
Can penguins fly? | No
Can fish breathe under water? | Yes, with gills
"""


def _rows(text):
    return [[c.strip() for c in line.split("|")] for line in text.strip().splitlines()]


TOPICS = [(r[0], r[1:]) for r in _rows(_TOPICS)]
TASKS = [(r[0], r[1:]) for r in _rows(_TASKS)]
QA = [(r[0], r[1]) for r in _rows(_QA)]

ASK = [
    "Tell me about {}.", "What do you know about {}?", "What can you say about {}?",
    "Describe {}.", "Explain {} to me.", "Give me some facts about {}.", "Write about {}.",
    "Why are people interested in {}?", "I want to learn about {}.", "Teach me about {}.",
    "What should I know about {}?", "Talk to me about {}.", "Say something about {}.",
    "Can you explain {}?", "Please describe {} in short.", "What is special about {}?",
]


def ask(rng, topic):
    """A question about a topic in a random phrasing."""
    text = rng.choice(ASK).format(topic)
    return text if rng.random() < 0.8 else text.lower().rstrip(".")


def general(rng):
    """A (request, [three sentences]) pair."""
    if rng.random() < 0.6:
        topic, facts = rng.choice(TOPICS)
        return ask(rng, topic), rng.sample(facts, 3)
    request, steps = rng.choice(TASKS)
    return request, list(steps)
