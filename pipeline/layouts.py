"""TEMP"""


def lay_out(bundle, folder, signers): ...
