"""What is expected."""


def remark(row):
    return ""
