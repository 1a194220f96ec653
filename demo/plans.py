"""Plans a requester wrote; `fedq build` records them."""

import fedq as fq


@fq.func2plan()
def column_means(patients):
    return patients.mean(0)


@fq.func2plan()
def largest(means):
    value, column = means.max(0)
    return value, column
