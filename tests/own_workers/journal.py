"""A worker that notes every training that it starts, for tests with dispatchers in several processes."""

import os
from pathlib import Path

from runner.testing import FakeWorker


class JournalWorker(FakeWorker):
    """Ends well at once. ``journal`` in its config names a file that gets one line per training."""

    def launch_submission(self) -> None:
        """Note the training and start it."""
        journal = os.open(Path(self.config["journal"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(journal, f"{self.submission}\n".encode())
        os.close(journal)
        super().launch_submission()
