"""minipeft"""
