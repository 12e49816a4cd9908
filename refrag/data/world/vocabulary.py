"""Words of the made-up world: name parts and attribute values, all written for this project."""

FIRST_NAMES = """
Mara Odo Lina Bram Tessa Ivo Runa Falk Nela Oskar Dalia Piet Sunna Emil Zora Henk Alva Kiran Bela Joris Maren Tovi
Ilse Ravi Greta Anso Petra Lucan Freya Milo Hanne Dario Selma Karel Wanda Nils Otti Basil Carla Enzo Dunja Filip Gerda
Hugo Imke Jarek Katla Leon Minna Noor Orla Pavel Quinn Rosa Sven Tilda Ulrik Vera Wim Xenia Yara Zeno Agda Boris Cleo
Dirk Edda Finn Gita Hilda Igor Jutta Knut Lotte Magda Nadia Olaf Pia Roald Sanne Theo Ursa Viggo Willa Yusuf Arno
Berit
""".split()

LAST_NAMES = """
Tolen Marsk Hedder Quill Vantor Brask Lindow Okker Pellan Strand Wexley Farrow Gosling Hartwin Ingram Jessop Kelder
Lomax Merrin Norvik Ostler Pruitt Rendal Solberg Thackery Umber Vesper Whitlow Yarrow Zelder Ashdown Birk Corvin
Drummond Elstad Fenwick Garrow Holloway Isherwood Jarvis Kestrel Lorne Mottram Nyberg Ormond Pascoe Quaid Rusk
Sterling Tamsin Ulver Varga Wendell Yates Zimmer Alder Bostrom Crane Dunmore Egge Flint Granger Hobbs Irving Jansen
Kroll Lund Moss Nash Orwin Penrose Rowan Sable Trent Upton Vance Warden Yorke Zander Abbot Becker Calder Dorsey Ekman
Fisk Gale
""".split()

SHIP_FIRST = """
Silver Crimson Northern Gentle Brave Hidden Golden Restless Ivory Distant Merry Patient Bold Quiet Scarlet Amber Swift
Lonely Proud Royal Humble Frosty Eager Lucky Stormy Noble Wild Pale Bright Jolly Solemn Tidal Misty Ancient Radiant
""".split()

SHIP_LAST = """
Heron Petrel Albatross Dolphin Lantern Meridian Comet Voyager Pelican Osprey Narwhal Tempest Horizon Compass Anchor
Harrier Curlew Plover Gannet Sextant Beacon Mermaid Trident Corsair Wanderer Cormorant Swallow Falcon Sturgeon Marlin
Pilgrim Minstrel Drifter Ranger Sentinel
""".split()

COMPANY_FIRST = """
Brightwater Oakmere Stonegate Redfern Highcliff Larkspur Millbrook Foxglove Ironbridge Thornbury Clearwell Eastwick
Goldcrest Hawthorn Kingsley Lowmoor Northgate Overton Pinewood Quarry Ridgeway Saltmarsh Tidewell Underhill Westbrook
Wildmoor Ashford Bluestone Coldharbour Deepdale Fairfield Greystone Hillcrest Longmeadow Silverdale
""".split()

COMPANY_LAST = """
Mills Works Foundry Brothers Partners Trading Industries Guild Cooperative Holdings Supplies Crafts Makers Traders
Company Stores Workshop Associates Group Union Exports Imports Builders Outfitters Merchants Depot House Studio
Laboratory Bureau Society Enterprise Factory Syndicate
""".split()

TOWNS = """
Ellin Corrow Dunvale Hask Merribel Ostrava Pellworm Quentin Sarn Tarbek Ulmby Varden Wick Yarm Zennor Amsel Bergen
Colby Dover Esker Fjord Galway Hythe Islay Jura Kelso Luxor Malmo Narvik Oban Porto Riga Skye Turin Umea Vigo
""".split()

JOBS = """
baker surgeon carpenter pilot librarian farmer painter plumber teacher lawyer tailor chemist gardener miner dentist
sculptor printer fisherman butcher judge astronomer locksmith beekeeper translator potter miller cobbler engraver
glazier cooper florist jeweller blacksmith barber clockmaker weaver
""".split()

COLOURS = """
red green blue yellow purple orange black white brown pink turquoise violet grey maroon beige olive teal indigo cream
coral lilac navy bronze mint
""".split()

ANIMALS = """
cat dog parrot rabbit hamster tortoise goat pony ferret canary lizard goose donkey hedgehog pigeon otter raven snake
fox owl badger squirrel beaver wolf bear lion tiger eagle camel zebra
""".split()

INSTRUMENTS = """
violin piano flute trumpet cello harp drum guitar oboe clarinet banjo accordion bassoon trombone mandolin tuba lute
fiddle organ bagpipe
""".split()

FOODS = """
soup bread cheese rice pasta salmon pancakes dumplings curry stew porridge salad noodles omelette lentils mushrooms
chocolate honey olives apples pears plums cherries walnuts pickles sausages waffles figs
""".split()

CARGOES = """
timber coal grain wool salt copper tea coffee sugar cotton iron wine spices marble leather silk tobacco rubber barley
glass paper cement flour oil
""".split()

PRODUCTS = """
bicycles lamps clocks chairs kettles boots umbrellas pianos telescopes ropes bottles candles carpets hammers pencils
mirrors wheels locks ladders baskets gloves tents helmets spoons blankets radios
""".split()

YEARS = [str(year) for year in range(1850, 2000)]

MONTHS = "January February March April May June July August September October November December".split()

DAYS = [f"{day} {month}" for month in MONTHS for day in range(1, 29)]

# Letters that are not easily taken for digits.
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"

DIGITS = "0123456789"
