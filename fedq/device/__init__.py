"""The data owner's side: store, journal, gate, worker."""
