import threading
import time

import pytest

from export.flow import ahead, parallel


def test_ahead_and_parallel_keep_the_order():
    def slow_if_even(number):
        time.sleep(0.002 * (number % 2 == 0))
        return number * number

    found = list(parallel(slow_if_even, ahead(iter(range(50)), depth=2), workers=4))

    assert found == [number * number for number in range(50)]


def test_no_more_is_fetched_than_the_bound():
    fetched = []

    def source():
        for number in range(1000):
            fetched.append(number)
            yield number

    items = ahead(source(), depth=3)
    next(items)
    time.sleep(0.1)

    assert len(fetched) <= 1 + 3 + 1
    items.close()


@pytest.mark.parametrize("where", ["source", "function"])
def test_the_first_error_is_raised_and_no_thread_is_left(where):
    def source():
        for number in range(100):
            if where == "source" and number == 5:
                raise ValueError("source")
            yield number

    def function(number):
        if where == "function" and number == 5:
            raise ValueError("function")
        return number

    before = threading.active_count()
    items = ahead(source(), depth=2)
    results = parallel(function, items, workers=2)

    with pytest.raises(ValueError, match=where):
        list(results)
    items.close()

    assert threading.active_count() == before
