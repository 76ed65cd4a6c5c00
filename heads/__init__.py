"""The state heads: what is read at <STATE>, and the bundle they are kept in."""
