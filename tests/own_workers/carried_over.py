"""A worker as people wrote them for ramp-engine, old habits included; nothing of ramp-cloud in it but one import."""

# ruff: noqa: DTZ003, PTH103, PTH110, PTH118, PTH120, PTH123, RET503, SIM115 - written for another project

import os
import shutil
import subprocess
from datetime import datetime

from runner.workers.base import BaseWorker, _get_traceback

FOLDERS = ("kit_dir", "data_dir", "submissions_dir", "logs_dir", "predictions_dir")


class CarriedOverWorker(BaseWorker):
    """Runs ramp-test in the participant's own folder, as the conda worker of ramp-engine did."""

    def setup(self):
        """Look for ramp-test."""
        for key in FOLDERS:
            self._check_config_name(self.config, key)
        self._ramp_test = shutil.which("ramp-test", path=os.path.dirname(self.config["python"]))
        if self._ramp_test is None:
            msg = "there is no ramp-test beside python"
            raise ValueError(msg)
        super().setup()

    def launch_submission(self):
        """Start ramp-test with its output in the log."""
        if self.status == "running":
            msg = "this worker is busy"
            raise ValueError(msg)
        self._log_dir = os.path.join(self.config["logs_dir"], self.submission)
        os.makedirs(self._log_dir, exist_ok=True)
        self._log = open(os.path.join(self._log_dir, "log"), "wb+")
        self._proc = subprocess.Popen(
            [
                self._ramp_test,
                "--submission", self.submission,
                "--ramp-kit-dir", self.config["kit_dir"],
                "--ramp-data-dir", self.config["data_dir"],
                "--ramp-submission-dir", self.config["submissions_dir"],
                "--save-output",
                "--ignore-warning",
            ],
            stdout=self._log,
            stderr=self._log,
        )  # fmt: skip
        super().launch_submission()
        self._start_date = datetime.utcnow()

    @property
    def timeout(self):
        """Time limit in seconds."""
        return self.config.get("timeout", 7200)

    def check_timeout(self):
        """Kill ramp-test when it has had its time."""
        if (datetime.utcnow() - self._start_date).total_seconds() > self.timeout:
            self._proc.kill()
            self.status = "timeout"
            return True

    def _is_submission_finished(self):
        self.check_timeout()
        return self._proc.poll() is not None

    def _output(self):
        return os.path.join(self.config["submissions_dir"], self.submission, "training_output")

    def collect_results(self):
        """Copy what was saved; wait for the end if need be."""
        super().collect_results()
        if self.status not in ("finished", "running", "timeout"):
            return None
        self._proc.communicate()
        self._log.close()
        with open(os.path.join(self._log_dir, "log"), "rb") as file:
            error_msg = _get_traceback(file.read().decode("utf-8"))
        predictions = os.path.join(self.config["predictions_dir"], self.submission)
        if os.path.exists(predictions):
            shutil.rmtree(predictions)
        returncode = 124 if self.status == "timeout" else self._proc.returncode
        if returncode:
            if os.path.exists(self._output()):
                shutil.rmtree(self._output())
        else:
            shutil.copytree(self._output(), predictions)
        self.status = "collected"
        return returncode, error_msg

    def teardown(self):
        """Clean the participant's folder."""
        if self.status not in ("collected", "retry"):
            msg = "collect the results before the end of the worker"
            raise ValueError(msg)
        if os.path.exists(self._output()):
            shutil.rmtree(self._output())
        super().teardown()
