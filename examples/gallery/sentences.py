"""Forty sentences about five topics, half of them positive.

They were written for the examples of the gallery, as pairs with the same topic and opposite
sentiment.
"""

positive = {
    "hotel": ["Our room was spotless and quiet.", "The staff at the desk could not be kinder.",
              "A lovely view from the balcony.", "We slept better than at home."],
    "food": ["The soup was rich and full of flavour.", "Fresh bread, still warm from the oven.",
             "The best curry that I have had in years.", "Every dish tasted delicious."],
    "phone": ["The battery easily lasts two days.", "The screen is sharp and bright.",
              "It takes stunning pictures in the dark.", "A fast phone at a fair price."],
    "train": ["The train left on the minute.", "Plenty of space for my legs and bags.",
              "The conductor was friendly and helpful.", "A smooth and relaxing ride."],
    "course": ["The teacher explains everything clearly.", "I learned more than I had hoped for.",
               "The exercises are fun and useful.", "A well planned course for beginners."],
}  # fmt: skip
negative = {
    "hotel": ["Our room was dirty and loud.", "The staff at the desk ignored us.",
              "A depressing view of a car park.", "We hardly slept at all."],
    "food": ["The soup was thin and tasted of nothing.", "Stale bread, hard as a stone.",
             "The worst curry that I have had in years.", "Every dish came cold and greasy."],
    "phone": ["The battery is empty by noon.", "The screen is dull and scratches at once.",
              "Its pictures are blurred in the dark.", "A slow phone that costs too much."],
    "train": ["The train left an hour late.", "No space for my legs or bags.",
              "The conductor was rude to everybody.", "A bumpy and exhausting ride."],
    "course": ["The teacher confuses everybody.", "I learned nothing that I could use.",
               "The exercises are boring and pointless.", "A badly planned waste of time."],
}  # fmt: skip
