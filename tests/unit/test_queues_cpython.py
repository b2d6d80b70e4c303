"""CPython's own tests of `queue.Queue`, where Python has them with it."""

from __future__ import annotations

import queue
import shutil
import tempfile
import unittest

import pytest

from chest import DurableQueue

test_queue = pytest.importorskip("test.test_queue")


class Queue(DurableQueue):
    """By the name that CPython's tests know."""


class TestPythonsOwn(test_queue.BaseQueueTestMixin, unittest.TestCase):
    queue = queue

    def type2test(self, maxsize: int = 0) -> Queue:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        made = Queue(folder, maxsize)
        self.addCleanup(made.close)
        return made
