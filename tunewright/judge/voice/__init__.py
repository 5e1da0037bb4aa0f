"""How an arm writes, compared with the reference answers: for free text, about which chrF says little."""
