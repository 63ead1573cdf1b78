"""What a policy's ``[[fetch]]`` asks for: downloaded once by ``warm``, found offline by runs.

Rules that this package keeps:

- An item is downloaded once, hashed, and kept as content-addressed data beside the layers: months
  later a run is reproduced from it without any server.
- A branch or tag is resolved once. The pin counts when the commit holds it in ``sealrun.lock``;
  otherwise it is the record.
- Only the item is mounted, read-only, where its library looks: never a cache directory of the
  caller's, which holds tokens.
- A server is hostile: every name, size, hash, redirect and body is checked against what was asked
  for or listed before it counts.
- A token is read from the variable that the policy names, goes to the server that it is for, and
  stands in no record, message or container.
"""
