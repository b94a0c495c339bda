"""Everyday questions with answers that a person might give, written for this repository (CC0).

No module was trained on them. They show what a library costs where no skill is asked for.
"""

CHAT = (
    ("How do I keep basil alive indoors?", "Put it in a sunny window, water it when the top of the soil feels dry, and pinch off the tips often so that it grows bushy."),
    ("Why do cats purr?", "Cats often purr when they feel content, but they also purr when they are hurt or afraid, perhaps to calm themselves."),
    ("What is a good way to start running?", "Start slowly. Run for one minute, walk for two, and repeat that for twenty minutes, three times a week."),
    ("Can you explain what a mortgage is?", "A mortgage is a loan that you use to buy a house. The house is the security: if you stop paying, the bank can take it."),
    ("What should I see in Rome in one day?", "See the Colosseum in the morning, walk through the old centre to the Pantheon, and end the day at the Trevi Fountain."),
    ("How does a microwave oven heat food?", "It sends waves that make the water molecules in the food move quickly, and this movement turns into heat."),
    ("I feel nervous before my exam tomorrow.", "That is normal. Go through your notes once more, pack your things tonight, and try to sleep well."),
    ("Tell me something interesting about octopuses.", "An octopus has three hearts and blue blood, and most of its nerve cells are in its arms."),
    ("What makes bread rise?", "Yeast eats sugar in the dough and gives off gas. The gas makes bubbles, and the dough grows around them."),
    ("How can I save money on groceries?", "Plan your meals for the week, make a list, buy basic foods in larger packs, and do not shop when you are hungry."),
    ("Why is the sea salty?", "Rivers wash minerals from rocks into the sea. The water evaporates, but the salt stays behind."),
    ("What is the point of a thesis statement?", "It tells the reader in one or two sentences what your essay argues, so that everything that follows has a direction."),
    ("How do noise-cancelling headphones work?", "A microphone picks up the noise around you, and the headphones play the opposite wave, so that the two cancel out."),
    ("My plant has yellow leaves. What is wrong?", "Most often it gets too much water. Let the soil dry, and make sure that the pot has holes at the bottom."),
    ("What is the difference between weather and climate?", "Weather is what happens today. Climate is what usually happens over many years."),
    ("How do I write a thank-you note?", "Say what you are thankful for, add a sentence on why it matters to you, and end with a warm wish."),
    ("Why do leaves change colour in autumn?", "In autumn trees stop making the green pigment, and the yellow and red colours that were hidden become visible."),
    ("What is a good hobby for a rainy day?", "You could draw, bake a cake, read a novel, or build a puzzle with friends."),
    ("How do bees make honey?", "Bees collect nectar from flowers, carry it to the hive, and fan it with their wings until most of the water is gone."),
    ("Should I lease or buy a car?", "Leasing costs less each month, but you own nothing at the end. Buying costs more at first and pays off if you keep the car for years."),
    ("What causes a rainbow?", "Sunlight enters drops of rain, bends, and splits into colours, which are sent back to your eye."),
    ("How can I sleep better?", "Go to bed at the same time every day, keep the room dark and cool, and leave your phone in another room."),
    ("Who invented the telephone?", "Alexander Graham Bell received the first patent for the telephone in 1876, although others worked on it too."),
    ("How do vaccines protect us?", "They show the immune system a harmless part of a germ, so that it can fight the real germ quickly later."),
    ("What do I need for a camping trip?", "Take a tent, a sleeping bag, warm clothes, a lamp, food that is easy to cook, and plenty of water."),
    ("Why do we have time zones?", "The earth turns, so the sun rises at different moments in different places. Time zones keep noon near the middle of the day."),
    ("How do I learn to play the guitar?", "Learn three simple chords, practise changing between them slowly, and play for fifteen minutes every day."),
    ("What is inflation?", "Inflation means that prices rise over time, so the same amount of money buys less than before."),
    ("Can fish sleep?", "Yes, in a way. Many fish rest without moving for hours, though they have no eyelids to close."),
    ("How do I make a good cup of tea?", "Use fresh boiling water, let the leaves steep for three to five minutes, and warm the cup first."),
    ("Why do people yawn?", "Nobody knows for sure. It may cool the brain, and seeing others yawn often makes us yawn too."),
    ("What is a simple dinner for two?", "Cook some pasta, fry garlic and tomatoes in olive oil, mix everything, and serve it with cheese."),
)  # fmt: skip

NEAR = (
    "Is Spanish hard to learn?",
    "What is the German word for house?",
    "How did the Romans count large sums of money?",
    "What should I write on a birthday card?",
    "How do I ask my boss for a day off?",
    "When was the French Revolution?",
    "What is a database used for?",
    "Which continent would you like to visit?",
    "What time do people eat dinner in Spain?",
    "How do I write a thank-you note?",
    "What is a regular polygon?",
    "Is it polite to arrive late for dinner?",
    "How do I get better at arithmetic?",
    "Why are past events hard to remember?",
    "What do people feel when they lose a friend?",
    "Who should I select for the team?",
)
"""Everyday questions with words that a module's card has too."""
