"""`python -m fastdit` is the command line; `accelerate launch -m fastdit ...` starts it on several devices."""

from fastdit.cli import main

main()
