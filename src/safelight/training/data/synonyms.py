"""What people call the things of emoji lists and of shelves: a "lady beetle" is a ladybug, an "automobile" a car.

A collection's `keywords` hold such words beside others that only belong to a thing ("milk" of a cow's face, "garden" of
a snail), and nothing in a table tells them apart. So these were chosen by hand, for names of Unicode's list above all.
Each is true of the thing in every style.
"""

from collections.abc import Mapping
from typing import Any

from safelight.errors import InputError

SYNONYMS: dict[str, tuple[str, ...]] = {}

for _entry in """
    grinning face: happy face, smiley, smiley face | smiling face with sunglasses: cool face, face with sunglasses
    smiling face with heart-eyes: face in love, smiley with heart eyes | crying face: sad face | angry face: mad face
    sleeping face: sleepy face | smiling face with horns: devil, devil face
    jack-o-lantern: Halloween pumpkin, pumpkin | pile of poo: poop | clown face: clown
    thinking face: thoughtful face | nerd face: nerd | face with tears of joy: laughing face
    loudly crying face: sobbing face | face blowing a kiss: kissing face | partying face: party face
    cowboy hat face: cowboy | hot face: overheated face | cold face: freezing face | alien monster: space invader
    skull and crossbones: crossbones | goblin: tengu | ogre: oni

    dog face: dog, puppy | dog: puppy | cat face: cat, kitten | cat: kitten | tiger face: tiger | cow face: cow
    pig face: pig | pig: piggy | mouse face: mouse | rabbit face: rabbit, bunny | rabbit: bunny | monkey face: monkey
    horse face: horse | dragon face: dragon | bear: bear face | fox: fox face | panda: panda bear | lion: lion face
    frog: frog face | koala: koala bear | hippopotamus: hippo | rhinoceros: rhino | baby chick: chick
    front-facing baby chick: chick | hatching chick: chick in an egg | duck: mallard | lady beetle: ladybug, ladybird
    honeybee: bee, bumblebee | turtle: tortoise | spouting whale: whale | tropical fish: fish | blowfish: puffer fish
    bug: caterpillar | ewe: sheep, lamb | two-hump camel: camel | T-Rex: dinosaur, tyrannosaurus
    sauropod: dinosaur, brontosaurus | spiral shell: shell, seashell | spider web: cobweb | eagle: bald eagle
    unicorn: unicorn face

    red apple: apple | green apple: apple | tangerine: orange, mandarin | grapes: bunch of grapes | kiwi fruit: kiwi
    ear of corn: corn, corn on the cob | hot pepper: chili, chili pepper | eggplant: aubergine
    hamburger: burger, cheeseburger | doughnut: donut | ice cream: bowl of ice cream, sundae
    soft ice cream: ice cream, ice cream cone | cookie: biscuit | birthday cake: cake | shortcake: cake, slice of cake
    cupcake: muffin | lollipop: lolly | hot beverage: cup of coffee, coffee, hot drink | pizza: slice of pizza
    mushroom: toadstool | brown mushroom: mushroom | french fries: fries, chips | cheese wedge: cheese
    cooking: fried egg | teacup without handle: cup of tea, tea | beer mug: beer, glass of beer
    clinking beer mugs: beers | wine glass: glass of wine | bottle with popping cork: champagne, bottle of champagne
    cocktail glass: cocktail, martini | glass of milk: milk | cup with straw: soda, soft drink
    baguette bread: baguette | bread: loaf of bread | steaming bowl: noodles, ramen
    poultry leg: chicken leg, drumstick | cut of meat: steak, meat | sushi: nigiri | candy: sweet | custard: pudding
    chocolate bar: chocolate | honey pot: honey, pot of honey | leafy green: lettuce | green salad: salad
    bento box: bento | flatbread: pita | shallow pan of food: paella | satsumas: oranges, mandarins
    royal gala apple: apple | granny smith apple: apple | carrots: bunch of carrots

    blossom: flower | tulip: flower | rose: flower | sunflower: flower | hibiscus: flower
    cherry blossom: flower, sakura | evergreen tree: pine tree, fir, fir tree, tree | deciduous tree: tree
    palm tree: palm | Christmas tree: Xmas tree | four leaf clover: clover, lucky clover | maple leaf: leaf
    fallen leaf: autumn leaf | seedling: sprout | potted plant: plant, house plant | crescent moon: moon
    full moon: moon | waxing crescent moon: moon | cloud: puffy cloud | fire: flame
    droplet: drop of water, water drop, drop | high voltage: lightning, lightning bolt, thunderbolt
    ringed planet: planet, Saturn | umbrella: parasol | water wave: wave | snowflake: snow crystal
    cloud with rain: rain cloud | cloud with lightning: thundercloud | globe showing Europe-Africa: Earth, globe
    globe showing Americas: Earth, globe | snow-capped mountain: mountain | house: home, cottage | tent: camping tent
    castle: fortress | house with garden: house | derelict house: old house, haunted house | desert island: island

    automobile: car | oncoming automobile: car | racing car: race car | sport utility vehicle: car, SUV
    locomotive: train, steam train, steam engine | high-speed train: train | taxi: cab | airplane: plane, aeroplane
    small airplane: plane, airplane | flying saucer: UFO, spaceship | rocket: space rocket
    sailboat: boat, sailing boat | speedboat: boat | bicycle: bike | motorcycle: motorbike | kick scooter: scooter
    motor scooter: scooter | fire engine: fire truck | delivery truck: truck, lorry | articulated lorry: truck, lorry
    bus: school bus, coach | police car: patrol car | tram: streetcar | ship: cruise ship
    vertical traffic light: traffic light

    wrapped gift: gift, present | crown: royal crown | light bulb: lamp, bulb | closed book: book | open book: book
    soccer ball: football | trophy: cup | gem stone: diamond, gem, jewel | top hat: hat, magic hat
    alarm clock: clock | mantelpiece clock: clock | envelope: letter | old key: key | camera: photo camera
    mobile phone: phone, smartphone | telephone: phone | laptop: laptop computer, notebook computer
    television: TV, TV set | money bag: bag of money | running shoe: sneaker, sports shoe
    high-heeled shoe: high heel | glasses: eyeglasses | socks: pair of socks
    magnifying glass tilted left: magnifying glass, lens | scissors: pair of scissors | videocassette: video tape
    video game: game controller, gamepad | artist palette: palette, paint palette | bullseye: target, dartboard
    teddy bear: teddy | game die: dice | american football: football | puzzle piece: jigsaw piece
    red heart: heart, love heart | two hearts: hearts | check mark: tick | cross mark: cross
    flexed biceps: muscle, strong arm | folded hands: praying hands | Santa Claus: Father Christmas | mage: wizard
    man mage: wizard | woman mage: witch | long sword: sword | treant: tree creature | jelly: slime | giant frog: frog
    golden dragon: dragon | ice dragon: dragon | magenta potion: potion | ruby potion: potion | cyan potion: potion
    golden potion: potion | castle wall: wall of a castle
""".replace("|", "\n").strip().splitlines():  # fmt: skip
    if _entry.strip():
        _name, _, _others = _entry.partition(":")
        SYNONYMS[_name.strip()] = tuple(other.strip() for other in _others.split(","))


def synonyms(name: str, meta: Mapping[str, Any]) -> tuple[str, ...]:
    """List what else a thing is called: what its table's `synonyms` say, or else what is known here of its name.

    Raises InputError where the table gives anything but a list of names.
    """
    said = meta.get("synonyms")
    if said and not (isinstance(said, list) and all(isinstance(other, str) and other.strip() for other in said)):
        raise InputError(f"the synonyms of {name!r} are {said!r}", remedy='give a list of names, such as ["car"]')
    return tuple(said) if said else SYNONYMS.get(name, ())
