"""Examine a checkpoint, predictions, a loss or batches: measurements, verdict, causes. Drawing is report's.

``checkpoint`` and ``predictions`` are the two ways in. Both add up whole images (``tally``), judge them by the rules of
the monitor and of ``image_rules``, and look for ``causes``; ``result`` is what they return. ``networks``, ``inputs`` and
``batches`` measure what only a checkpoint has; ``loss_probe`` looks at a loss before a training.
"""
