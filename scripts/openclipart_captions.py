"""Captions of the Open Clip Art pictures, from their human metadata alone.

Used by `build_openclipart.py` when the shipped data is made. A caption is

    <title>[, <keyword>...], <what it is>        "ladybug, insect, a bug"

in lower case, 4 to 16 words. The title is the artist's; where it only names a collection, the
cleaned file name stands in for it. "What it is" translates the folder the picture was filed in.
Nothing is guessed from the picture, and what does not read as English is left out.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

MIN_WORDS, MAX_WORDS = 4, 16
MAX_KEYWORDS = 3


@dataclass(frozen=True)
class Collection:
    """A series whose titles say nothing about the single picture; at most `limit` are kept."""

    name: str
    pattern: str
    limit: int
    searched: str = "title"

    def matches(self, path: str, title: str) -> bool:
        text = title if self.searched == "title" else path
        return re.search(self.pattern, text, re.IGNORECASE) is not None


COLLECTIONS = (
    Collection("gramastar", r"^gramastar$", 20),
    Collection("gradients", r"^special/gradients/", 20, "path"),
    Collection("patterns", r"^special/patterns/", 100, "path"),
    Collection("cards", r"/games/cards/", 104, "path"),
    Collection("jigsaw", r"^shapes/jigsaw/", 24, "path"),
    Collection("flat theme", r"/flat-theme/", 400, "path"),
    Collection("lemon theme", r"/lemon-theme/", 200, "path"),
    Collection("etiquette theme", r"/etiquette-theme/", 80, "path"),
    Collection("icon themes", r"-icon-theme|iconset|gold-theme|lemon svg|flat icon|etiquette", 80),
    Collection("clipart by", r"^clipart by ", 800),
    Collection(
        "other titles that name a series",
        r"^(aiga.symbol.signs|various cliparts|svg road signs|people|advertising|homes clipart"
        r"|r1[5-8] .*|australian maps|map symbols|card|menu clip art.*|stick ?man"
        r"|svg .*collection.*|sallite|road signs|simple arrows)$",
        800,
    ),
)

# What a folder holds, as a noun phrase. The most specific folder is used first.
FOLDERS = {
    "animals": "an animal",
    "animals/amphibian": "an amphibian",
    "animals/birds": "a bird",
    "animals/birds/penguin": "a penguin",
    "animals/bugs": "a bug",
    "animals/dinosaurs": "a dinosaur",
    "animals/fantasy": "a fantasy animal",
    "animals/fish": "a fish",
    "animals/mammals": "a mammal",
    "animals/mammals/bears": "a bear",
    "animals/mammals/big_cats": "a big cat",
    "animals/mammals/dogs": "a dog",
    "animals/mammals/horses": "a horse",
    "animals/mammals/housecats": "a cat",
    "buildings": "a building",
    "buildings/furniture": "a piece of furniture",
    "buildings/homes": "a home",
    "buttons": "a button",
    "computer": "a computer picture",
    "computer/buttons": "a button",
    "computer/connectors": "a computer connector",
    "computer/diagrams": "a diagram",
    "computer/folders": "a folder",
    "computer/games": "a computer game",
    "computer/hardware": "some computer hardware",
    "computer/icons": "a computer icon",
    "computer/network": "a computer network",
    "containers": "a container",
    "decorations": "a decoration",
    "education": "a school picture",
    "education/books": "a book",
    "electronics": "an electronic part",
    "electronics/battery": "a battery",
    "electronics/bulb": "a light bulb",
    "food": "some food",
    "food/beverages": "a drink",
    "food/beverages/alcohol": "an alcoholic drink",
    "food/breads_and_carbs": "some bread or grain",
    "food/dairy": "a dairy product",
    "food/desserts": "a dessert",
    "food/fruit": "a fruit",
    "food/meats_and_eggs": "some meat or egg",
    "food/vegetables": "a vegetable",
    "geography": "a map",
    "geography/astronomy": "a thing in the sky",
    "logos": "a logo",
    "office": "an office thing",
    "office/telephone": "a telephone",
    "people": "a picture of people",
    "people/bodypart": "a body part",
    "people/clothing": "a piece of clothing",
    "people/clothing/hats": "a hat",
    "people/clothing/jewelry": "a piece of jewelry",
    "people/smilies": "a smiley face",
    "people/stickmen": "a stick man",
    "plants": "a plant",
    "plants/flowers": "a flower",
    "plants/trees": "a tree",
    "plants/trees/evergreen": "an evergreen tree",
    "recreation": "a thing for leisure",
    "recreation/art": "an art picture",
    "recreation/games": "a game",
    "recreation/games/cards": "a playing card",
    "recreation/games/chess": "a chess picture",
    "recreation/games/dice": "a die",
    "recreation/holiday": "a holiday picture",
    "recreation/holiday/christmas": "a christmas picture",
    "recreation/holiday/easter": "an easter picture",
    "recreation/holiday/thanksgiving": "a thanksgiving picture",
    "recreation/holiday/valentines": "a valentine picture",
    "recreation/music": "a music picture",
    "recreation/party": "a party picture",
    "recreation/religion": "a religious picture",
    "recreation/sports": "a sports picture",
    "recreation/toys": "a toy",
    "science": "a science picture",
    "science/astronomy": "a thing in the sky",
    "science/medicine": "a medical picture",
    "shapes": "a shape",
    "shapes/arrows": "an arrow",
    "shapes/callouts": "a speech bubble",
    "shapes/flowchart": "a flowchart shape",
    "shapes/jigsaw": "a jigsaw puzzle piece",
    "shapes/stars": "a star shape",
    "signs_and_symbols": "a symbol",
    "signs_and_symbols/awards": "an award",
    "signs_and_symbols/clocks": "a clock",
    "signs_and_symbols/flags": "a flag",
    "signs_and_symbols/flags/africa": "a flag from africa",
    "signs_and_symbols/flags/america": "a flag from america",
    "signs_and_symbols/flags/america/canada": "a flag from canada",
    "signs_and_symbols/flags/america/united_states": "a flag from the united states",
    "signs_and_symbols/flags/asia": "a flag from asia",
    "signs_and_symbols/flags/europe": "a flag from europe",
    "signs_and_symbols/flags/europe/france": "a flag from france",
    "signs_and_symbols/flags/europe/germany": "a flag from germany",
    "signs_and_symbols/flags/europe/spain": "a flag from spain",
    "signs_and_symbols/flags/historic": "a historic flag",
    "signs_and_symbols/flags/oceania": "a flag from oceania",
    "signs_and_symbols/flags/semaphore": "a semaphore signal",
    "signs_and_symbols/hazard": "a hazard symbol",
    "signs_and_symbols/led": "an led light",
    "signs_and_symbols/map_symbols": "a map symbol",
    "signs_and_symbols/money": "some money",
    "signs_and_symbols/weather": "a weather symbol",
    "special": "a background",
    "special/gradients": "a color gradient",
    "special/patterns": "a pattern",
    "tools": "a tool",
    "tools/weapons": "a weapon",
    "transportation": "a transport picture",
    "transportation/aiga-symbols": "a transport symbol",
    "transportation/boating": "a boating picture",
    "transportation/roadsigns": "a road sign",
    "transportation/vehicles": "a vehicle",
}

# Filing words of the collection: they tell a librarian something, a viewer nothing.
DULL_KEYWORDS = set(
    "hash symbol symbols sign signs icon icons theme action application appicon mapsym magick"
    " geometry special unsorted menu mimetypes filesystem device devices work recreation computer"
    " united nations member openclipart clipart clip art shape shapes webpage website simple"
    " collection various people equipment activities activity entertainment musicstuff musicsym"
    " religholiday networksym weathersym appsym sym logo logos study content stuff image picture"
    " graphic drawing svg vector other misc general education thought organizations imformation"
    " transport transportation festive office stock tool tools work place decoration international"
    " stickmen geography historic roadtravel airtravel subnational protein carbohydrate dvb mime"
    " types flag flags button buttons hotel ornamental bordered creation day back go".split()
)
SPELLING = {
    "unitedstates": "united states",
    "northamerica": "north america",
    "latinamerica": "latin america",
    "vegitable": "vegetable",
    "vegitables": "vegetables",
    "icecream": "ice cream",
    "roadsign": "road sign",
    "signalflag": "signal flag",
    "bodypart": "body part",
    "arrowshape": "arrow",
    "noze": "nose",
    "beatle": "beetle",
    "coloured": "colored",
    "palmtree": "palm tree",
    "handphone": "hand phone",
    "seagreen": "sea green",
    "tv": "television",
    "xmas": "christmas",
    "tickey": "ticket",
    "rectg": "rectangle",
    "elips": "ellipse",
    "rnd": "round",
    "baloon": "balloon",
    "lightbulb": "light bulb",
    "teddybear": "teddy bear",
    "icecube": "ice cube",
    "softdrink": "soft drink",
    "meatgrinder": "meat grinder",
    "paperbag": "paper bag",
    "tophat": "top hat",
    "harddisk": "hard disk",
    "harddrive": "hard drive",
    "laserprinter": "laser printer",
    "downarrow": "down arrow",
    "uparrow": "up arrow",
    "leftarrow": "left arrow",
    "rightarrow": "right arrow",
    "logaritmic": "logarithmic",
    "wordprocessing": "word processing",
    "fullmoon": "full moon",
    "firstquarter": "first quarter moon",
    "lastquarter": "last quarter moon",
    "waxingcrescent": "waxing crescent moon",
    "waningcrescent": "waning crescent moon",
    "waxinggibbous": "waxing gibbous moon",
    "waninggibbous": "waning gibbous moon",
}
# File name pieces that name a toolkit, an artist or a variant, not the thing.
DULL_PIECES = set(
    "aiga ganson gnome kde gtk fs stock mime aj dev svg png eps x r mo mateya fc sm plastik"
    " bwh by linux clipart architetto jean vic benji nicu buculei gerald".split()
)
# English words that a general word list lacks.
EXTRA_WORDS = set(
    "seagull damselfly angelfish loach cichlid orca seahorse gourami echidna gimp midi paperclip"
    " outbox colorize decrypted stamper rollerblading boombox tangram sandglass kanji trillium"
    " keyring crosswind tramway lopper hosta lightbulb teddybear checkmark todo fullscreen xbox"
    " gameboy joypad packman tetris icecube softdrink perogies sakura meatgrinder breakdance tophat"
    " paperbag biohazard splatter robot logarithmic webcam emoticon".split()
)
FOREIGN = set(
    "cane mare sole rana ape rosa pane pera luna casa gallo palma scala mela pianta bandiera"
    " fiore foglia pesce uva vino coda dado onda mano naso piede rete serpe tavola tazza"
    " vela cubo palla pulsante tasto acqua stella croce rondelle "
    " suivre chien arte pesche pino pini torre".split()
)
CARD_SUITS = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}
CARD_RANKS = {"a": "ace", "k": "king", "q": "queen", "j": "jack"} | {
    str(n): name
    for n, name in enumerate("two three four five six seven eight nine ten".split(), start=2)
}


def collection_of(path: str, title: str) -> Collection | None:
    """The series a picture belongs to, or None where its title is its own."""
    return next((series for series in COLLECTIONS if series.matches(path, title)), None)


def plain_words(text: str) -> list[str]:
    """Lower-case words, less a serial number at the end: "MyGraph_02" gives my, graph."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).replace("_", " ").lower()
    found = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+", text)
    while found and found[-1].isdigit():
        found.pop()
    return " ".join(SPELLING.get(word, word) for word in found).split()


def title_words(title: str) -> list[str]:
    title = re.sub(r"\(?\bb\s*(and|&|/)\s*w\b\)?", " black and white ", title, flags=re.IGNORECASE)
    return plain_words(
        re.sub(r"\s+-\s+(rpg map elements?|body part|clothing).*", "", title, flags=re.IGNORECASE)
    )


def file_words(path: str, author: str) -> list[str]:
    """Words of the file name, less the artist's name that the archive appended and truncated."""
    stem = PurePosixPath(path).stem
    if "/games/cards/" in path and (card := card_words(stem)):
        return card
    if points := re.match(r"star_(\d+)pt", stem):
        return ["star", "with", points.group(1), "points"]
    pieces = [piece.lower() for piece in re.split(r"[\W_]+|\d+", stem) if piece]
    names = plain_words(author)
    while len(pieces) > 1 and any(name.startswith(pieces[-1]) for name in [*names, "r"]):
        pieces.pop()
    if pieces[-1:] == ["bw"]:
        pieces[-1:] = ["black", "and", "white"]
    kept = [piece for piece in pieces if len(piece) > 1 and piece not in DULL_PIECES]
    return [word for piece in kept for word in plain_words(piece)]


def card_words(stem: str) -> list[str] | None:
    suit, _, rank = stem.partition("_")[2].partition("_")
    if suit == "jk":
        return ["joker"]
    if suit in CARD_SUITS and rank in CARD_RANKS:
        return [CARD_RANKS[rank], "of", CARD_SUITS[suit]]
    return None


def reads_as_english(words: list[str], known: set[str]) -> bool:
    letters = [word for word in words if len(word) > 1 and not word.isdigit()]
    if not any(len(word) > 2 for word in letters) or len(words) > 10:
        return False
    good = sum(word in known and word not in FOREIGN for word in letters)
    return good >= 0.6 * len(letters)


def name_of(path: str, title: str, author: str, known: set[str]) -> list[str] | None:
    """What the picture shows, as words, from its title or else its file name."""
    series = collection_of(path, title)
    from_title = title_words(title)
    if series is None or series.name == "patterns":
        is_place = "/flags/" in path and 0 < len(from_title) <= 6
        if "@" not in title and (is_place or reads_as_english(from_title, known)):
            return from_title
    from_file = file_words(path, author)
    return from_file if reads_as_english(from_file, known) else None


def folder_phrases(path: str) -> list[str]:
    """Noun phrases of the picture's folders, the most specific first."""
    parents = [str(parent) for parent in PurePosixPath(path).parents]
    return list(dict.fromkeys(FOLDERS[folder] for folder in parents if folder in FOLDERS))


def stem_of(word: str) -> str:
    """A crude singular, to see that "eyes" and "eye" are the same keyword."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def useful_keywords(keywords: list[str], author: str, known: set[str]) -> list[str]:
    kept = []
    for keyword in keywords:
        words = plain_words(keyword)
        is_dull = any(word in DULL_KEYWORDS or word in plain_words(author) for word in words)
        if words and len(words) < 3 and not is_dull and reads_as_english(words, known):
            kept.append(" ".join(words))
    return list(dict.fromkeys(kept))


def head_of(phrase: str) -> str:
    """The noun that a folder's phrase is about: "flag" of "a flag from asia"."""
    return stem_of(phrase.split(" from ")[0].split()[-1])


def is_specific(phrase: str) -> bool:
    return len(phrase.split()) <= 3 and phrase.split()[-1] not in {"picture", "thing", "part"}


def describe(
    path: str, title: str, keywords: list[str], author: str, known: set[str]
) -> tuple[str, list[str], str] | None:
    """Name, useful keywords and caption of a picture; None where nothing in English is left.

    A picture with a foreign title is named after its folder, where one noun says what it holds
    ("animals/mammals/horses"), or after its first keyword where it has several.
    """
    useful = useful_keywords(keywords, author, known)
    phrases = folder_phrases(path)
    name = name_of(path, title, author, known)
    if name is None and "-theme/" in path:
        return None
    if name is None and len(phrases) > 1 and is_specific(phrases[0]):
        name = phrases[0].split()[1:]
    if name is None and len(useful) > 1:
        name = useful[0].split()
    if name is None:
        return None
    caption = compose_caption(name, useful, phrases)
    return (" ".join(name), useful, caption) if len(caption.split()) >= MIN_WORDS else None


def compose_caption(name: list[str], keywords: list[str], phrases: list[str]) -> str:
    """Join the parts, leaving out what has been said, within the word limits."""
    parts, said = [" ".join(name)], {stem_of(word) for word in name}
    heads = {head_of(phrase) for phrase in phrases}
    for keyword in keywords:
        stems = {stem_of(word) for word in keyword.split()}
        if len(parts) <= MAX_KEYWORDS and not stems & (said | heads):
            parts.append(keyword)
            said |= stems
    num_before = len(parts)
    for phrase in phrases:
        is_wanted = len(parts) == num_before or num_words(parts) < MIN_WORDS
        if is_wanted and head_of(phrase) not in said:
            parts.append(phrase)
            said.add(head_of(phrase))
    if num_words(parts) < MIN_WORDS:
        parts[0] = with_article(parts[0])
    if num_words(parts) < MIN_WORDS:
        parts[0] = f"a picture of {parts[0]}"
    while num_words(parts) > MAX_WORDS:
        parts.pop(-2 if len(parts) > 2 else -1)
    return ", ".join(parts)


def with_article(name: str) -> str:
    if stem_of(name) != name:
        return f"some {name}"
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def num_words(parts: list[str]) -> int:
    return len(" ".join(parts).split())
