"""`python -m fastgen.bench`."""

from fastgen.bench.command import main

raise SystemExit(main())
