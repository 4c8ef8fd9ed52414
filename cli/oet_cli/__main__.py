"""`python -m oet_cli`: the `oet` command."""

from __future__ import annotations

from oet_cli.main import main

main()
