"""The commands of the console script `rayrec`: each file here is one, with a function ``main(args)``.

jobs/NAME.py runs the same function, for ``ray job submit`` and from a checkout.
"""
