"""`minetorch prove`: shows that a killed training ends as one that was not, to the bit, or says where they part.

`proof.py` runs the user's script, in processes of its own. What those are to do stands in a file that they find by
one environment variable (`orders.py`); the Trainer in them writes down what it does (`recorder.py`).
"""
