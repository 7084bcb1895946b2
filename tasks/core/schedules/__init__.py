"""`doit --cron` at regular times, as the platform does it: a systemd timer, a launchd agent, a
line of the crontab. Each way is a module with the same functions:

    available()        whether the platform has it
    place(project)     where it is written, in words
    installed(project) the marker of what is installed, or None
    install(job)       write it and start it; whether anything changed
    remove(project)    take it away; whether there was any
    next_run(project)  when it runs next (seconds since 1970), None if that isn't known
    notes()            what keeps it from running, a line each
"""
