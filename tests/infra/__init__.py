"""The program of infra/, with mocks and with the real engine."""
