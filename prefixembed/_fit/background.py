"""Background text: sentences about everything, which a source task should leave alone.

The sentences are composed of the phrases below, which were written for this library. What matters
is that they are of many kinds and belong to no task.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from prefixembed._embed.texts import check_texts, is_pairs

# Per topic: subjects, predicates in the past tense, circumstances, and nouns to ask about.
_TOPICS = (
    (
        "the river|a heavy storm|the northern wind|snow from the mountains|the morning fog|"
        "a long drought|the first frost",
        "reached the valley|covered the fields|moved slowly towards the coast|closed two roads|"
        "lasted for nine days|turned into rain|surprised the weather service",
        "before noon|late in autumn|after a dry summer|for the third time that year|"
        "near the border|without any warning",
        "the climate of the coast|the level of the river|a change in air pressure",
    ),
    (
        "the government|a committee of experts|the mayor of the town|the opposition|"
        "a small party|the foreign minister|the parliament",
        "passed a law on water|voted against the budget|promised lower taxes|asked for more time|"
        "met representatives of the union|published a report of two hundred pages|"
        "delayed the election",
        "in a public session|by a narrow majority|after weeks of talks|despite many protests|"
        "on Thursday evening|for reasons of security",
        "the result of the vote|a tax on fuel|the duties of a minister",
    ),
    (
        "the home team|a young goalkeeper|the champion|the coach|a runner from Kenya|"
        "the visiting players|the referee",
        "won the second match|missed a penalty|broke the record by two seconds|left the field|"
        "scored in the last minute|trained for the tournament|finished in fourth place",
        "in front of a full stadium|although it was raining|in the final|during the winter season|"
        "with a sprained ankle|against a stronger opponent",
        "the rules of handball|the length of a marathon|the score at half time",
    ),
    (
        "a team of chemists|the laboratory|an astronomer|the new telescope|a biologist|"
        "the experiment|a group of physicists",
        "measured the mass of the particle|discovered a faint galaxy|repeated the procedure|"
        "found no trace of the compound|described an unknown species|confirmed the prediction|"
        "cooled the sample to ten kelvin",
        "under a microscope|with a margin of error of one percent|in a vacuum|"
        "over a period of six months|to everyone's relief|at a depth of three kilometres",
        "the boiling point of ammonia|the distance to the nearest star|a protein in the cell",
    ),
    (
        "my grandmother|the cook|our neighbour|the owner of the bakery|a street vendor|"
        "the waiter|his aunt",
        "baked bread with olives|chopped onions and parsley|served soup in wooden bowls|"
        "boiled the rice too long|bought apples at the market|roasted a chicken|"
        "forgot to add the salt",
        "on Sunday morning|for twelve guests|in a tiny kitchen|over an open fire|"
        "before the children came home|with a pinch of pepper",
        "a recipe for lentils|the price of butter|how long an egg must boil",
    ),
    (
        "the bank|an insurance company|the central bank|a group of investors|the shareholders|"
        "the finance department|a small publisher",
        "raised the interest rate|sold half of its shares|opened a branch in Lisbon|"
        "reported a loss for the quarter|signed a contract with a supplier|reduced its debt|"
        "hired forty people",
        "in the first half of the year|to the surprise of analysts|under new management|"
        "because demand had fallen|at a fixed price|after the merger",
        "the value of a bond|the rate of inflation|the terms of the loan",
    ),
    (
        "the patient|a nurse|the surgeon|the clinic|a doctor in the village|the pharmacist|"
        "the new vaccine",
        "took two tablets a day|complained of a headache|recommended more sleep|"
        "recovered within a week|checked the blood pressure|protected most children|"
        "ordered another test",
        "after the operation|for several years|in rare cases|without side effects|"
        "during a routine visit|because of a fever",
        "the symptoms of measles|the dose for an adult|a treatment for burns",
    ),
    (
        "the programmer|an update of the system|the server|a student of computer science|"
        "the new phone|the network|the algorithm",
        "stored the file twice|sorted the list in place|lost the connection|"
        "used less memory than before|asked for a password|sent the message again|"
        "returned an empty result",
        "every few seconds|on an old laptop|because of a missing bracket|over a secure channel|"
        "in a test environment|until the disk was full",
        "the size of the buffer|a language for databases|the address of a printer",
    ),
    (
        "the teacher|a class of thirty pupils|the university|the librarian|a student from Chile|"
        "the headmaster|the exam",
        "explained the theorem on the board|visited the museum of natural history|"
        "offered a course in Latin|returned the books|wrote an essay about rivers|"
        "began at eight o'clock|collected the homework",
        "in the second term|with a great deal of patience|for the first time|in groups of four|"
        "before the holidays|according to the timetable",
        "the capital of Mongolia|the meaning of a word|the date of the exam",
    ),
    (
        "the train|a taxi|the ferry to the island|the pilot|two cyclists|a lorry full of bricks|"
        "the last bus",
        "left from platform nine|arrived forty minutes late|stopped at every village|"
        "crossed the bridge|took the longer road|waited at the crossing|carried sixty passengers",
        "because of repairs|at sunrise|along the canal|through a long tunnel|"
        "between the two cities|without changing lanes",
        "the way to the station|the price of a ticket|the speed of a tram",
    ),
    (
        "the emperor|a merchant from Venice|the old castle|an army of peasants|the monks|"
        "the treaty|the explorers",
        "ruled for thirty years|sold silk and spices|was destroyed by fire|"
        "copied the manuscript by hand|ended the war|sailed around the cape|"
        "refused to pay the tribute",
        "in the twelfth century|at the request of the king|after a siege of two months|"
        "according to the chronicle|with only three ships|on the other side of the sea",
        "the year of the battle|the founder of the city|the language of the court",
    ),
    (
        "a flock of geese|the old oak|the fox|a swarm of bees|the gardener|the wolves|"
        "a rare orchid",
        "flew south|lost its leaves|hid behind the barn|nested under the roof|"
        "planted beans along the fence|followed the herd|grew between the rocks",
        "as the days became shorter|in the shade|at the edge of the forest|"
        "throughout the night|far from any village|once the ice had melted",
        "the lifespan of a tortoise|the food of an owl|why leaves turn yellow",
    ),
    (
        "the court|a lawyer from the city|the witness|the judge|the police|the accused|"
        "the contract",
        "heard the case in private|asked for a translation|identified the car|"
        "rejected the appeal|searched the apartment|signed a statement|expired in March",
        "on the second day of the trial|for lack of evidence|within the legal period|"
        "under oath|at the request of both sides|without giving a reason",
        "the rights of a tenant|the penalty for theft|the age of consent to a contract",
    ),
    (
        "the architect|a family of five|the landlord|the carpenter|our house|the new library|"
        "the plumber",
        "painted the door green|moved to a larger flat|repaired the roof|"
        "stood at the corner of the square|replaced the pipes|drew the plans|raised the rent",
        "with the help of friends|by the end of May|in a quiet street|on the third floor|"
        "for less than expected|although the lift was broken",
        "the height of the tower|the colour of the tiles|the area of the room",
    ),
    (
        "the orchestra|a painter from Seville|the choir|the museum|a writer of short stories|"
        "the sculptor|the violinist",
        "rehearsed the second movement|used charcoal and chalk|sang without accompaniment|"
        "bought a portrait|worked on a single page|carved the figure from oak|"
        "tuned the strings",
        "for an hour|in the old town hall|at the invitation of the mayor|by candlelight|"
        "between two tours|in front of an empty room",
        "the composer of the waltz|the age of the statue|the first page of the novel",
    ),
    (
        "a man in a grey coat|the woman at the counter|two boys|the girl with the umbrella|"
        "an elderly couple|the crowd|someone upstairs",
        "opened the window|pointed at the map|carried a box of books|waited by the fountain|"
        "played cards|looked for the keys|spoke in a low voice",
        "while the others were asleep|on the way home|next to the newspaper stand|"
        "under the bridge|for no apparent reason|with both hands",
        "the owner of the umbrella|the time on the clock|the contents of the box",
    ),
    (
        "the factory|an engineer|the crane|the mine|a worker on the night shift|the power station|"
        "the turbine",
        "produced four hundred engines a day|welded the frame|lifted the beam|closed in spring|"
        "switched off the machine|supplied the whole region|turned at half speed",
        "according to the manual|for the sake of safety|since the last inspection|"
        "at a constant temperature|by remote control|in spite of the noise",
        "the output of the plant|the weight of steel|the cause of the fault",
    ),
    (
        "the farmer|a herd of goats|the harvest|the shepherd|the cooperative|the mill|"
        "a field of barley",
        "sold milk to the dairy|grazed on the hill|was stored in the barn|"
        "counted the animals|shared two tractors|ground the wheat|needed more water",
        "at the end of August|as in earlier years|behind the stone wall|"
        "for the whole village|despite the heat|by hand",
        "the yield of a field|the weight of a calf|when to sow rye",
    ),
    (
        "the tourists|a guide with a red flag|the hotel|our group|the travel agency|"
        "a couple from Norway|the captain",
        "climbed the tower|booked rooms with a view of the lake|lost their luggage|"
        "explained the frescoes|changed money at the airport|missed the boat|"
        "spent a week on the island",
        "in early June|because the pass was closed|for a small fee|before breakfast|"
        "on foot|with a map from the last century",
        "the currency of Peru|the opening hours of the museum|a visa for students",
    ),
    (
        "the editor|a reporter|the television station|the newspaper|a radio host|the printer|"
        "the photographer",
        "checked the facts|interviewed the fishermen|changed the headline|"
        "broadcast the debate|printed a correction|sent pictures from the harbour|"
        "answered letters from readers",
        "on the front page|at short notice|in three languages|before the deadline|"
        "from a phone box|without naming the source",
        "the author of the article|the number of readers|the title of the programme",
    ),
)  # fmt: skip
_STATEMENTS = (
    "{s} {p} {c}.", "{c}, {s} {p}.", "{s} {p}.", "{s} {p} {c}, and {t} {q}.",
    "{s} {p}, but {t} {q} {d}.", "{s}, which nobody had expected, {p} {c}.",
    "When {s} {p}, {t} {q} {d}.", "{s} {p} because {t} {q}.", "It was said that {s} {p} {c}.",
    "{s} never {p} again.", "The sign says that {s} {p}.",
)  # fmt: skip
_QUESTIONS = (
    "What is {n}?", "Who knows {n}?", "Can you tell me {n}?", "Is it true that {s} {p} {c}?",
    "Where did they look up {n}?", "Why do people ask about {n}?",
)  # fmt: skip


@functools.lru_cache(maxsize=1)  # each fit asks for them, and composing takes a quarter second
def background_texts(n_texts: int = 2400, seed: int = 0) -> tuple[str, ...]:
    """Return background sentences, the same for the same arguments; two in seven are questions."""
    rng = np.random.default_rng(seed)
    topics = [[part.split("|") for part in topic] for topic in _TOPICS]
    texts = []
    for _ in range(n_texts):
        one, other = (topics[k] for k in rng.integers(len(topics), size=2))
        forms = _QUESTIONS if rng.random() < 2 / 7 else _STATEMENTS
        text = str(rng.choice(forms)).format(
            s=rng.choice(one[0]), p=rng.choice(one[1]), c=rng.choice(one[2]), n=rng.choice(one[3]),
            t=rng.choice(other[0]), q=rng.choice(other[1]), d=rng.choice(other[2]),
        )  # fmt: skip
        texts.append(text[0].upper() + text[1:])
    return tuple(texts)


def resolve_background(background: Any, weight: float, ffn_length: int) -> list[str]:
    """Return the texts that the parameter `background` stands for, checked."""
    if background is None or not weight:
        return []
    if isinstance(background, str):  # "auto"
        return list(background_texts()) if ffn_length else []
    texts = check_texts(background, "background")
    if not ffn_length:
        raise ValueError("background is for prefixes with slots, got ffn_length=0")
    if not texts or is_pairs(texts):
        kind = "pairs of texts" if texts else "none"
        raise ValueError(f"background must hold one text or more, got {kind}")
    return [str(text) for text in texts]
