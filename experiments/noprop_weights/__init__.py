"""Which times own the gradient of NoProp-CT, under each loss: a study for one page, kept to be run again."""
