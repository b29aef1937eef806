"""Suite `console`: a guest's end of the console page, judged by a daemon that is written against the bare page."""
