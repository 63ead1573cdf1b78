"""GPUs: which the caller sees, whose turn it is, and how a container gets just those.

Rules that this package keeps:

- What the caller sees is what the container gets: never more, and nothing else by accident.
- A device has one holder on the whole host: a run waits for its turn, and says so.
- Looking, choosing and asking are apart: ``nvidia`` and ``amd`` read the machine, ``visible`` and
  ``access`` decide without looking at anything, ``lease`` keeps runs apart, ``assign`` joins them.
- A GPU that a container cannot be given is trouble of the machine, told before anything starts.
"""
