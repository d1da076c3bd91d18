"""What a process is started with: settings, folders, log, and which objects they mean."""
