"""What people use today, written as fast as a competent user would write it."""
