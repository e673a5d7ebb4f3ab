"""What type checkers must refuse: each line that is marked, and no other."""

from headgate import Client

client = Client("localhost:50051")
client.generate("fast", 7)  # refused
client.generate("fast", "Hello", temperature="hot")  # refused
client.generate("fast", "Hello", temprature=0.5)  # refused
print(client.generate("fast", "Hello").txt)  # refused
client.run_tools("fast", "Hello", [], tools=[])  # refused
client.embed("minilm", "a", element_type="float64")  # refused
Client("localhost:50051", api_kee="k")  # refused
