# our stand-in reads nothing of it
