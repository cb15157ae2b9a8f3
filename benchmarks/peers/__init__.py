"""Networks and engines that users have besides ours, all behind one session."""
