"""An object whose pickle makes a folder when it is read as pickles usually are."""

import os


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))
