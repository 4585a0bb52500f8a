CORRUPTIONS = ()


def corrupt(samples, name, severity):
    raise NotImplementedError
