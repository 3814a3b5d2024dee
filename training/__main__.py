"""`python -m pathline.training` and `accelerate launch -m pathline.training`."""

from pathline.training.cli import main

if __name__ == "__main__":
    main()
