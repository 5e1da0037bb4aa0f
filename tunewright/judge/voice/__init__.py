"""How an arm writes, compared with the house: the people whose answers are in the rows. For free text, where chrF says
little about it."""
