"""What the real jobflow-remote does with a queue: fill, dump FOLDER, restore FOLDER.

The project is the only one in the folder that JFREMOTE_PROJECTS_FOLDER names.
"""

import os
import sys

from jobflow import Flow, job
from jobflow_remote import submit_flow
from jobflow_remote.jobs.jobcontroller import JobController


@job
def add(a, b):
    return a + b


command, *folder = sys.argv[1:]
queue = JobController.from_project_name(os.environ["JFREMOTE_PROJECT"])
if command == "fill":
    queue.reset(reset_output=False, max_limit=0)
    for i in range(5):
        first = add(i, 1)
        submit_flow(Flow([first, add(first.output, 2)]), worker="local")
elif command == "reset":
    queue.reset(reset_output=False, max_limit=0)
elif command == "dump":
    print(queue.backup_dump(folder[0], python=True))
elif command == "restore":
    queue.backup_restore(folder[0], python=True)
elif command == "show":
    print(queue.count_jobs(), queue.count_flows(), sorted(j.name for j in queue.get_jobs_info()))
