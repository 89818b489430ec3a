"""`python -m app.worker`: a worker process, or several."""

from __future__ import annotations

from app.settings.streams import never_wait, run_program, set_up_streams

if __name__ == "__main__":
    set_up_streams()
    from app.worker.command_line import main
    from app.worker.event_loop import end_process

    never_wait()
    end_process(run_program(main))
