import sys

from fastspeech.bench.cli import main

sys.exit(main())
