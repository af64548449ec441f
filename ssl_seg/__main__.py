"""``python -m ssl_seg``."""

from ssl_seg.cli.main import main

if __name__ == "__main__":
    main()
