"""Which entry goes into which layer. Pure: tables in, plans out."""
