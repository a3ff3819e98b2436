"""`python -m router.config FILE` writes the page of all settings; without FILE, prints it."""

import sys
from pathlib import Path

from router.config.docs import configuration_page

if len(sys.argv) > 1:
    Path(sys.argv[1]).write_text(configuration_page(), "utf-8")
else:
    sys.stdout.write(configuration_page())
