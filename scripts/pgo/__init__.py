"""The profile-guided build: see build.py and train.py."""
