"""The backup VM's side of sparsebak: the archive and all that is done with it.

May import ``wire``, never ``dom0_agent``: the two meet only through services.
"""
