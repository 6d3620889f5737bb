"""The families' pairs of models lie beside their own tests."""

import sys
from pathlib import Path

for _family in ("cohere_asr", "kyutai_stt", "moonshine", "speech_to_text"):
    sys.path.append(str(Path(__file__).parents[1] / "models" / _family))
