"""What bench/compare is made of: the machine, the programs, the relays, the tables."""
