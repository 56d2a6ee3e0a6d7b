"""Entry of the app, for `streamlit run` and for hosting; beside it lies what hosting installs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from thyroid_lib.deploy.app import main

main()
