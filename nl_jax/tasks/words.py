"""English adjectives and nouns, of which the keys of a needle are made."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words("""
able afraid agile alert alive amber ample ancient angry anxious aware awful bald bitter bland blank bleak blind blunt
bold brave brief bright brisk broad broken bumpy busy calm careful careless cheap cheerful chilly chubby civil clean
clear clever close cloudy clumsy coarse cold common complete cool costly crazy crisp crooked cruel curious curly damp
dark dear deep dense dim dirty distant double dry dull eager early easy elegant empty endless equal even exact faint
fair faithful false famous fancy fast fat fearless few fierce filthy fine firm flaky flat fluffy foggy fond foolish
formal fragile frail free fresh friendly full funny fuzzy gentle giant gifted glad gloomy glossy golden good graceful
grand grave greedy grim grumpy guilty handsome handy happy hard harsh hasty healthy heavy helpful hidden high hollow
honest huge humble hungry idle ill jolly jumpy just keen kind large late lazy lean light likely little lively lonely
long loose loud loyal lucky mad magnificent massive mellow messy mild misty modern modest muddy narrow nasty neat
nervous nice nimble noble noisy normal numb odd open ordinary painful pale patient perfect petite plain pleasant polite
poor proper proud pure quaint quick quiet rapid rare raw ready real rich ripe rotten rough round royal rude rusty sad
safe salty scarce secret serious shaggy shallow sharp shiny short shy silent silky simple sleepy slim slippery slow
small smart smooth soft solid sore sour spare special spicy splendid steady steep sticky stiff strange strict strong
sturdy subtle sudden sunny superb sweet swift tall tame tasty tender tense thick thin thirsty tidy tight tiny tired
tough tricky true ugly unique upset useful vague vast vital vivid warm wary weak weary weird wet wide wild wise witty
wonderful wooden worried wrong young zealous
""")

NOUNS = _words("""
accident actor album alcove anchor ankle anvil apron arch arrow artist attic aunt author autumn avenue axe badge bag
bakery balcony ball balloon bamboo banana bandage bank barn barrel basin basket bathtub battery beach bead beak bean
beard bedspread bee bell belt bench bicycle bill biscuit blanket boat bolt bone bonnet book boot border bottle bowl
box bracelet branch brass bread breeze brick bridge broom brush bubble bucket buckle building bulb bundle bus bush
button cabbage cabin cable cactus cake calendar camel camera canal candle cannon canoe canvas cap captain card
carpet carriage cart castle catalog cave ceiling cellar chain chair chalk channel cherry chess chest chimney church
circle city clam cloak clock cloth cloud clover coach coal coast coat cobweb coin collar comb compass copper cork corn
cottage cotton cow crab cradle crate crayon cream creek crib crow crown cup curtain cushion daisy deck deer desk diamond
dinner dish dock doll dollar door dragon drain drawer dress drum duck dust ear earth egg elbow engine envelope eye
fabric factory fan farm feather fence fiddle field finger fireplace fish flag flame flock floor flower flute foot forest
fork fountain fox frame frog fruit furnace gallery game gate ghost giraffe glass glove glue goat gold goose grain grape
grass gravel guitar gun hammer hand harbor hat hawk heart hedge helmet hen hill hinge hobby honey hook horn horse hose
hospital hotel hour ice ink insect iron island ivory jacket jail jam jar jelly jewel juice jungle kettle key king
kite kitten knee knife knot lace ladder lake lamb lamp lantern leaf leather leg lemon letter lettuce library lighthouse
lion lizard lock locket lumber lunch machine magnet map marble market mask match meadow medal metal mirror mitten money
monkey moon moose morning mother motor mountain mouse mouth mud music nail napkin neck needle nest net nose notebook
nut oak oatmeal ocean onion orange orchard oven owl oyster page pail paint palace pan parade parcel park parrot path
pebble pen pencil pepper piano picture pie pig pillow pin pipe pizza plane planet plant plate pocket poem pond popcorn
porch poster pot potato powder prison pump puppet purse puzzle quarter queen quill quilt rabbit rail rain rainbow rake
ring river road robin rock roof room rooster root rope rose sack saddle sail salt sand scarf school scissors seed shadow
sheep shelf shell ship shirt shoe shop shovel sink skate skirt sled snail snake snow soap sock sofa soup spade sparrow
spider spoon spring square squirrel stamp star station statue steam steel stem stone stove straw street string sugar
suit summer sun swing sword table tail tank target taxi teapot temple tent theater thimble thread throat throne thumb
thunder ticket tiger timber toad toast tomato tooth towel tower town toy track train tray treasure tree truck trumpet
trunk tub tulip tunnel turkey turtle umbrella vase vegetable veil vein vessel vest violet violin volcano voyage wagon
wall watch water wave wax whale wheat wheel whip whistle window wing winter wire wolf wood wool wren wrist yard yarn
zebra zipper
""")
