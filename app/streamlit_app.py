"""Entry point of the web page, for `streamlit run`; hosting installs requirements.txt beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from thyroid_lib.deploy.app import main

main()
